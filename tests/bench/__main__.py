"""`python -m tests.bench`: all tables of what things cost over what they must."""

from tests.bench import (
    test_bench_algebra,
    test_bench_frechet,
    test_bench_levers,
    test_bench_memory,
    test_bench_methods,
    test_bench_policy,
    test_bench_reno,
    test_bench_reward,
)

for module in (
    test_bench_policy,
    test_bench_memory,
    test_bench_levers,
    test_bench_methods,
    test_bench_reno,
    test_bench_frechet,
    test_bench_algebra,
    test_bench_reward,
):
    print(f"\n{(module.__doc__ or '').splitlines()[0]}\n")
    module.main()
