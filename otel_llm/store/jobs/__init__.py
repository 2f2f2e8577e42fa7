"""What is done to a whole store by command: copying, keeping, pricing, sending again."""
