"""How far a prompt goes to the cross-attention: what was brought down is not to grow again."""

import re
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "walk.py"


def test_a_prompt_reaches_the_cross_attention_in_few_calls():
    command = [sys.executable, str(SCRIPT), "t2i"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    calls, modules = map(int, re.search(r"(\d+) calls in (\d+) modules", said).groups())
    assert "nn.attention:attend" in said and "conditioning" in said.partition("names: ")[2]
    assert calls <= 22 and modules <= 10, said
