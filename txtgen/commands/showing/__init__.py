"""What people and programs are shown: the terminal, tables, pages."""
