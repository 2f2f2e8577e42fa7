"""What is done to a whole store: merging in the background; by command copying, keeping, pricing, sending again."""
