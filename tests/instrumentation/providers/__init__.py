"""What other providers than OpenAI answer, by whichever client they are asked."""
