"""How a budget stops calls: what is set aside for each before it is sent, what a machine's processes have spent, the exception."""
