import shutil
import threading

from tunescope.run.files import files_below


def test_folders_that_a_live_step_removes_meanwhile_are_no_error(tmp_path):
    """A step moves its checkpoints about while `show` lists its folder."""
    (tmp_path / "b").mkdir()
    for name in ("b/kept", "a"):
        (tmp_path / name).write_text("")
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            for number in range(20):
                (tmp_path / f"checkpoints/{number}/deep").mkdir(parents=True, exist_ok=True)
            shutil.rmtree(tmp_path / "checkpoints")

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        listed = [[str(p.relative_to(tmp_path)) for p in files_below(tmp_path)] for _ in range(300)]
    finally:
        stop.set()
        thread.join()
    assert listed == [["a", "b/kept"]] * 300
    assert list(files_below(tmp_path / "never there")) == []
