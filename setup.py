"""The C extension: the one thing that pyproject.toml has no key for."""

from setuptools import setup

setup(
    cffi_modules=["vhost/core_build.py:ffibuilder"],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
