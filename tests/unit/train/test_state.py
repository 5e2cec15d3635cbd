"""Progress counts samples and remembers the best evaluation."""

from pipeline.train.state import TrainState


def test_a_tie_keeps_the_earlier_evaluation():
    state = TrainState(step=10)
    assert state.note_score(0.5, 0.9)
    state.advance(8)
    assert not state.note_score(0.5, 0.95)
    assert (state.best_miou, state.best_pixel_accuracy, state.best_step) == (0.5, 0.9, 10)
    assert (state.step, state.position) == (11, 8)
