"""Tools around the application: capacity plan, load bench, simulator, accuracy, and the files for clusters."""
