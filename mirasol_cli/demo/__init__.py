"""The rendered world: scenes of simple instruments, their pictures and sound, and questions about them."""
