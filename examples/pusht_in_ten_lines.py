"""Learn a representation from the embedded Push-T demonstrations and act with it. About seven minutes on two cores.

uv run python examples/pusht_in_ten_lines.py
"""

import classact

if __name__ == "__main__":  # simulators run in worker processes, which import this file
    data = classact.read("pusht-expert")
    run = classact.pretrain(data, "runs/example", preset="pusht-demo")
    rows = classact.evaluate(run, episodes=50)
    policy = classact.load_policy(run)
    print(policy.spec)
    print(rows[0])
    print("see", classact.report(run))
