"""The draft adapter, fitted to one's own traffic: `vllm-nld adapter train` and `adapter evaluate`, see docs/adapter.md.

Training is decoding: a batch of answers is walked through in rounds as linear self-speculation would decode them, so
every block starts where the adapter's own drafts have led it.

    conversations.py   prompts and answers            walk.py       rounds, drafts, losses
    answers.py         answers of a server, in AR     trainer.py    steps, state, early stop
    memory.py          GPU memory, before it starts   figures.py    AL and TPF with intervals, the verdict
    train.py, evaluate.py   the commands              plot.py
"""
