"""Push-T where one demonstration in ten carries actions: CLAM's latent actions stand for those of the others.

uv run --extra pusht python examples/few_labels.py
"""

import classact

LABELLED = "0:30"  # of 300

if __name__ == "__main__":  # simulators run in worker processes, which import this file
    data = classact.read("pusht-expert")
    model = classact.latent_actions(data, "runs/latent-actions", labelled=LABELLED, preset="clam-cpu")
    run = classact.pretrain(data, "runs/few-labels", preset="pusht-demo", labelled=LABELLED, latent_actions=model)
    head = classact.finetune(run, "mlp", preset="head-demo")
    for policy in (None, head.root.name):  # retrieval, and the head
        print(classact.evaluate(run, head=policy, episodes=50)[0])
    print("see", classact.report(run))
