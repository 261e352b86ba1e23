"""What may be asked without torch."""

import subprocess
import sys


def test_ranking_a_jacobian_store_and_reading_the_verbs_needs_no_torch() -> None:
    code = (
        "import sys, gradsae_fast.jacobian.ranking, gradsae_fast.cli_jacobian, gradsae_fast.cli_synthetic; "
        "assert not {'torch', 'transformers', 'triton'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
