"""Preference pairs from conversations: of every one, a reply of the assistant beside a reply from another conversation.

Use: python scripts/preference_pairs.py CHATS.jsonl[.gz] PAIRS.jsonl [--seed N] [--most N]
"""

import argparse
import gzip
import json
import random
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chats", type=Path, help="a line of JSON with `messages` a conversation")
    parser.add_argument("pairs", type=Path, help="where to write a line of `messages`, `chosen` and `rejected` a pair")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--most", type=int, help="pairs to write; default: one of every conversation")
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    answered = []
    with (gzip.open if arguments.chats.suffix == ".gz" else open)(arguments.chats, "rt", encoding="utf-8") as lines:
        for line in lines:
            messages = json.loads(line)["messages"]
            turns = [turn for turn, message in enumerate(messages) if turn and message["role"] == "assistant"]
            if turns:
                turn = draw.choice(turns)
                answered.append((messages[:turn], messages[turn]["content"]))
    draw.shuffle(answered)
    # The reply of the next conversation, in a random order, so that no conversation lends its own.
    with arguments.pairs.open("w", encoding="utf-8") as file:
        for (history, chosen), (_, other) in list(zip(answered, answered[1:] + answered[:1], strict=True))[
            : arguments.most
        ]:
            if chosen != other:
                file.write(json.dumps({"messages": history, "chosen": chosen, "rejected": other}) + "\n")


if __name__ == "__main__":
    main()
