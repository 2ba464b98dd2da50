"""Two commands at once on one workdir: the second is refused; a killed one is in nobody's way."""

import pytest

from keras_vjepa.recipes import decode, detect, finetune, pretrain, probe, probe_table, supervised
from keras_vjepa.tools import ablations, dense_probe, detect_table, finetune_table, sweep
from keras_vjepa.tools import probe_table as table_of_several
from tests.support import lock_holder

pytestmark = pytest.mark.data

# Each command, with a function that it calls inside its lock.
COMMANDS = [
    (pretrain, "_is_finished", "--workdir"),
    (probe, "_evaluate", "--workdir"),
    (probe_table, "_table", "--workdir"),
    (table_of_several, "_table", "--workdir"),
    (supervised, "labelled_clips", "--workdir"),
    (sweep, "run_all", ""),
    (ablations, "_check_settings", ""),
    (finetune, "FineTuning.is_finished", "--workdir"),
    (detect, "Detection.is_finished", "--workdir"),
    (decode, "make_samples", "--workdir"),
    (finetune_table, "SeedTable", ""),
    (detect_table, "SeedTable", ""),
    (dense_probe, "run", "--output"),
]


# Checks before the lock, which are left out here.
TO_REPLACE = {
    finetune: ["check"],
    detect: ["check"],
    decode: ["check_decode_files"],
    finetune_table: ["check_preset"],
    detect_table: ["check_preset"],
    dense_probe: ["check_preset"],
}


class InsideTheLockError(OSError):
    """Raised in place of the work."""


def message_of(command, option, workdir):
    program = f"{command.__name__.split('.')[-1]}.py"
    further = {
        sweep: ["--vary", "learning_rate", "1e-3"],
        ablations: ["--table", "1"],
        finetune_table: ["--preset", "here"],
        detect_table: ["--preset", "here"],
        dense_probe: ["here"],
        table_of_several: ["--presets", "untrained"],
    }
    varied = further.get(command, [])
    with pytest.raises(SystemExit) as exit_info:
        command.main([*([option] if option else []), str(workdir), *varied], program)
    [line] = str(exit_info.value.code).splitlines()
    assert line.startswith(f"{program}: ")
    return line


@pytest.mark.parametrize(("command", "work", "option"), COMMANDS)
def test_the_second_is_refused_unless_the_first_is_dead(
    command, work, option, tmp_path, monkeypatch
):
    def inside(*arguments):
        assert (tmp_path / ".lock").is_file()
        raise InsideTheLockError("inside the lock")

    *owner, name = work.split(".")
    monkeypatch.setattr(getattr(command, owner[0]) if owner else command, name, inside)
    # These would need a preset.
    for name in TO_REPLACE.get(command, []):
        monkeypatch.setattr(command, name, lambda *arguments: None)
    # None of the commands changes the folder of a running one.
    (tmp_path / "kept").write_text("")
    with lock_holder(tmp_path) as holder:
        line = message_of(command, option, tmp_path)
        assert f"{option or 'workdir'} must be a folder in which no other run is at work" in line
        assert f"{tmp_path}, where process {holder.pid} on " in line
        holder.kill()
        holder.wait()
        # The killed process has left only its lock file, which does not block the next run.
        assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "kept"]
        assert message_of(command, option, tmp_path).endswith(": inside the lock")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
