"""From a TOML file to a finished run: reading, setting up, running in either world, and the folder that keeps it."""
