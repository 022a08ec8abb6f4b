"""Licences of benchmarks that must be accepted before anything is trained on them. No torch."""

from pathlib import Path

from pez.errors import UserError
from pez.files import fingerprint, write_json
from pez.movies.dataset import MovieDataset
from pez.records import AgreedRecord, read_record


def check_licence(dataset: MovieDataset, accepted: bool, remember_in: str | Path) -> None:
    """Let a benchmark be trained on only once its licence, if it declares one, was accepted on this machine.

    `accepted`: --accept-licence was given. `remember_in`: the folder (of artifacts) whose licences.json keeps which
    licences were, by benchmark and wording, so that each is asked for once. Raises UserError that says the licence.
    """
    if not dataset.licence:
        return
    path = Path(remember_in) / "licences.json"
    known = read_record(path, AgreedRecord) if path.is_file() else {}
    if known.get(dataset.name) == fingerprint(dataset.licence):
        return
    if not accepted:
        raise UserError(f"{dataset.title}: {dataset.licence}; if you may use it so, say --accept-licence (only once)")
    write_json(path, {**known, dataset.name: fingerprint(dataset.licence)})
    print(f"{dataset.title}: {dataset.licence}; accepted, which {path} remembers")
