import sys, tempfile
from pathlib import Path
from tests.training import test_sharded as t
if __name__ == "__main__":
    for case in sys.argv[1:]:
        out = Path(tempfile.mkdtemp())
        try:
            t.two_ranks(out, [case], 2)
            t.check(case, out, out / "one", 2)
            print("OK", case, flush=True)
        except BaseException as error:
            print("FAIL", case, type(error).__name__, str(error)[-1500:], flush=True)
