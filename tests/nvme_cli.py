"""How nvme-cli's JSON has what our pages have under the same names."""

from __future__ import annotations

from typing import Any

# 128 bits wide: nvme-cli gives these as text.
_WIDE = {
    *("nvmcap", "tnvmcap", "unvmcap", "data_units_read", "data_units_written", "host_read_commands"),
    *("host_write_commands", "controller_busy_time", "power_cycles", "power_on_hours", "unsafe_shutdowns"),
    *("media_errors", "num_err_log_entries"),
}
_PADDED = {"sn": 20, "mn": 40, "fr": 8}


def as_nvme_cli(fields: dict[str, Any]) -> dict[str, Any]:
    """Write the fields of a page (asdict()) as `nvme id-ctrl -o json` and its like do."""

    def written(name: str, value: Any) -> Any:
        if name in _WIDE:
            return str(value)
        if name in _PADDED:
            return value.ljust(_PADDED[name])
        return list(value) if name == "lbafs" else value

    return {name: written(name, value) for name, value in fields.items()}
