"""The TOML file of a volume, and where this machine keeps a volume's files."""

from icnfs.config.paths import config_file, runtime_dir, socket_path, state_dir
from icnfs.config.volume import AuditRules, VolumeConfig, load, parse

__all__ = ["AuditRules", "VolumeConfig", "config_file", "load", "parse", "runtime_dir", "socket_path", "state_dir"]
