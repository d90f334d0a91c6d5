"""Real guests: unmodified QEMU and user-mode Linux, driven from Python over their consoles."""
