"""Data sets of the hub: fetched and prepared by `datasets`, which unpacks nothing unseen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lora_lab.tasks.formats.archives import check_archive


def load_hub(
    hub_id: str, config_name: str | None = None, cache_dir: str | None = None, **options: Any
) -> Mapping[str, Any]:
    """Return {split: its rows} of a data set, as `datasets.load_dataset` does.

    Args:
        hub_id: of the form owner/name.
        config_name: which of its configurations.
        cache_dir: where it is kept; None: where `datasets` keeps all.
        options: of `datasets.load_dataset_builder`.

    Raises:
        TaskError: one of its files unpacks to more than texts do.
    """
    import datasets

    class Downloads(datasets.DownloadManager):
        def download(self, url_or_urls: Any) -> Any:
            found = super().download(url_or_urls)
            for path in _files(found):
                check_archive(Path(path), f"{hub_id}, {Path(path).name}")
            return found

    builder = datasets.load_dataset_builder(hub_id, config_name, cache_dir=cache_dir, **options)
    config = datasets.DownloadConfig(
        cache_dir=cache_dir and f"{cache_dir}/downloads", use_etag=False, token=builder.token
    )
    downloads = Downloads(
        dataset_name=builder.dataset_name,
        data_dir=builder.config.data_dir,
        download_config=config,
        base_path=builder.base_path,
        record_checksums=False,
    )
    builder.download_and_prepare(dl_manager=downloads)
    splits: Mapping[str, Any] = builder.as_dataset()
    return splits


def _files(found: Any) -> Iterator[str]:
    if isinstance(found, str):
        yield found
        return
    for each in found.values() if isinstance(found, Mapping) else found:
        yield from _files(each)
