# What mypy may know of the extension: cffi's objects have no static types.

from typing import Any

ffi: Any
lib: Any
