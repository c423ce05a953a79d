"""The commands, one file each: arguments in, output and exit codes out. Nothing heavy is imported before a command runs."""
