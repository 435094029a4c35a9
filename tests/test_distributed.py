"""Shares are disjoint and cover everything; a lone process needs no torchrun."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from src import distributed
from src.distributed import Team


@given(st.integers(0, 50), st.integers(1, 8))
def test_shares_partition_the_work(n: int, size: int) -> None:
    shares = [Team(rank, size).share(range(n)) for rank in range(size)]
    assert sorted(item for share in shares for item in share) == list(range(n))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_alone_is_a_team_of_one() -> None:
    with distributed.team() as team:
        assert (team.rank, team.size, team.leads) == (0, 1, True)
        team.wait()


def test_torchrun_forms_a_team(tmp_path: Path) -> None:
    script = tmp_path / "job.py"
    script.write_text(
        "from pathlib import Path\n"
        "from src import distributed\n"
        "with distributed.team() as team:\n"
        f"    Path({str(tmp_path)!r}, f'rank{{team.rank}}').write_text(','.join(team.share('abcde')))\n"
        "    team.wait()\n"
        f"    assert Path({str(tmp_path)!r}, 'rank0').exists() and Path({str(tmp_path)!r}, 'rank1').exists()\n"
    )
    root = Path(__file__).resolve().parents[1]
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)],
        check=True,
        cwd=root,
        env={"PYTHONPATH": str(root), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        timeout=120,
    )
    assert (tmp_path / "rank0").read_text() == "a,c,e"
    assert (tmp_path / "rank1").read_text() == "b,d"
