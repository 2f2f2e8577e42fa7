"""How records of the journals become rows of the database."""
