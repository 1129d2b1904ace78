"""Replicas in processes of Ray, run as a script with the case's name and its arguments."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


def columns(artifact: str) -> None:
    import ray

    from qeff_framework.scale import map_dataset

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    rows = [
        {"id": 7, "prompt": "w5 w9", "max_new_tokens": 4},
        {"id": 8, "prompt": "w6", "max_new_tokens": None},
        {"id": 9, "prompt": None, "max_new_tokens": 2},
    ]
    answered = map_dataset(
        ray.data.from_items(rows),
        f"file://{artifact}",
        keep=["id"],
        settings={"max_new_tokens": 3},
        replicas=1,
        batch_size=2,
    )
    print(json.dumps(sorted(answered.take_all(), key=lambda row: row["id"])))
    print((Path(os.environ["QEFF_HOME"]) / "fetched").is_dir())


def http(artifact: str) -> None:
    import openai
    from ray import serve

    from qeff_framework.scale import deployment

    serve.start(http_options={"port": 0 if len(sys.argv) < 4 else int(sys.argv[3])})
    serve.run(
        deployment(artifact, model="tiny", replicas=2, api_key_env="TEST_KEY", ray_actor_options={"num_cpus": 0.5})
    )
    url = f"http://127.0.0.1:{sys.argv[3]}/v1"
    found: dict[str, object] = {}
    with openai.OpenAI(base_url=url, api_key="sesame", max_retries=0) as client:
        found["text"] = client.completions.create(model="tiny", prompt="w5 w9", max_tokens=4).choices[0].text
        pieces = client.completions.create(model="tiny", prompt="w5 w9", max_tokens=4, stream=True)
        found["streamed"] = "".join(piece.choices[0].text for piece in pieces if piece.choices)
        try:
            client.completions.create(model="tiny", prompt="w5", max_tokens=4, temperature=-1)
        except openai.BadRequestError as error:
            found["refused"] = error.body
    with openai.OpenAI(base_url=url, api_key="wrong", max_retries=0) as client:
        try:
            client.models.list()
        except openai.AuthenticationError as error:
            found["key"] = error.status_code
    print(json.dumps(found))
    serve.shutdown()


if __name__ == "__main__":
    {"columns": columns, "http": http}[sys.argv[1]](sys.argv[2])
