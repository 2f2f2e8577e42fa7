"""What people look at: tables, numbers and plots on a terminal, workbooks."""
