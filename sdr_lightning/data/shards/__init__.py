"""Webdataset shards: writing them, and training from them in the order in which they are stored."""

from sdr_lightning.data.shards.source import ShardSource

__all__ = ["ShardSource"]
