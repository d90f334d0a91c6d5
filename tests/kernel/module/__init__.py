"""What the loadable module does, checked inside the VM by ../test_module.py."""
