"""End-to-end tests of the application with default settings, which is started once for all of them."""
