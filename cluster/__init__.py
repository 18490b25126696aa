"""Tools around a running application: the load bench."""
