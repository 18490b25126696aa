"""`make serve`: starts the application, shows what happens, and leaves nothing behind."""
