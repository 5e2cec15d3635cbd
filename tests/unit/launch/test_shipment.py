"""What is shipped of a working copy, and when again."""

from collections.abc import Callable

from tests.machines import Machine


def test_a_score_that_changed_and_kept_its_length_is_shipped_again(
    machines: Callable[..., Machine],
) -> None:
    machine = machines("here").begin()
    folder = machine.commit(2)
    name = f"checkpoints/{folder.name}/score.json"
    first = machine.score(folder, 0.25)
    shipment = machine.run.shipment()
    shipment.ship()
    second = machine.score(folder, 0.75)
    assert len(first) == len(second)
    shipment.ship()
    assert machine.store.read(name).data == second
    third = machine.score(folder, 0.5 + 0.125)
    fourth = machine.score(folder, 0.125 + 0.75)
    assert len(third) == len(fourth)
    machine.store.create(name, third)
    machine.run.shipment().ship()  # of an attempt that knows nothing of the score there
    assert machine.store.read(name).data == fourth


def test_what_did_not_change_is_not_sent_again(machines: Callable[..., Machine]) -> None:
    machine = machines("here").begin()
    machine.record("a line")
    (machine.run_dir / "config.json").write_text("{}")
    machine.score(machine.commit(2), 0.25)
    shipment = machine.run.shipment()
    shipment.ship()
    sent: list[str] = []

    def at(operation: str, name: str) -> None:
        if operation in ("put", "create", "replace", "remove"):
            sent.append(name)

    machine.before(at)
    shipment.ship()
    assert sent == []
