"""What the simulated annotator sends, and how it reads the answers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from lib.commands.client import MedsaClient
from lib.errors import MedsaError
from lib.prompts.promptset import PromptSet


def client_for(answer: Callable[[httpx.Request], httpx.Response]) -> MedsaClient:
    return MedsaClient(httpx.Client(transport=httpx.MockTransport(answer), base_url="http://server"), "me")


def test_labels_come_as_a_table_or_as_a_list(http: httpx.Client, server: Any) -> None:
    assert MedsaClient(http, "me").labels("medsa") == {"object": 1, "other": 2}
    server.labels = ["object", "other"]
    assert MedsaClient(http, "me").labels("medsa") == {"object": 1, "other": 2}


def test_an_unknown_model_is_named_with_those_there_are(http: httpx.Client) -> None:
    with pytest.raises(MedsaError, match="no model 'deepedit'; it has medsa"):
        MedsaClient(http, "me").labels("deepedit")


def test_the_next_case_is_asked_for_in_ones_own_name(http: httpx.Client, server: Any) -> None:
    server.offers = ["case1"]
    client = MedsaClient(http, "me")
    assert client.next_case("medsa") == "case1"
    server.offers = []
    assert client.next_case("medsa") is None
    assert json.loads(server.requests[0].content) == {"client_id": "me"}
    assert server.requests[0].url.path == "/activelearning/medsa"


def test_a_click_is_sent_as_slicer_sends_it(http: httpx.Client, server: Any, sent_fields: Any) -> None:
    prompts = PromptSet(positive_ijk=((1, 2, 3),), negative_ijk=((4, 5, 6), (7, 8, 9)), label="object")
    MedsaClient(http, "me").infer("medsa", "case0", prompts)
    request = server.requests[0]
    assert (request.method, request.url.path, dict(request.url.params)) == (
        "POST",
        "/infer/medsa",
        {"image": "case0"},
    )
    params = json.loads(sent_fields(request)["params"])
    assert params["foreground"] == [[1, 2, 3]]
    assert params["background"] == [[4, 5, 6], [7, 8, 9]]
    assert (params["label"], params["client_id"]) == ("object", "me")


def test_the_answer_is_mask_params_and_seconds(http: httpx.Client, server: Any) -> None:
    server.version = 7
    ticks = iter([10.0, 10.25])
    prompts = PromptSet(positive_ijk=((4, 3, 3), (4, 3, 4)), label="object")
    answer = MedsaClient(http, "me", lambda: next(ticks)).infer("medsa", "case2", prompts)
    assert np.array_equal(answer.mask, server.truth["case2"] == 1)
    assert (answer.params, answer.seconds) == ({"version": 7}, 0.25)


def test_the_label_is_saved_with_the_names_of_its_values(
    http: httpx.Client, server: Any, truth_files: dict[str, Path]
) -> None:
    MedsaClient(http, "me").save_label("case0", truth_files["case0"], {"object": 1, "other": 2})
    params, label = server.saved["case0"]
    assert params["label_info"] == [{"name": "object", "idx": 1}, {"name": "other", "idx": 2}]
    assert np.array_equal(label, server.truth["case0"])


def test_a_refused_request_is_an_error_with_the_servers_words() -> None:
    client = client_for(lambda request: httpx.Response(404, json={"detail": "image: 'x' is not accepted"}))
    with pytest.raises(MedsaError, match=r"POST /infer/medsa: 404 .*image: 'x' is not accepted"):
        client.infer("medsa", "x", PromptSet(positive_ijk=((0, 0, 0),)))


def test_a_server_that_is_not_there_is_an_error() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("connection refused")

    with pytest.raises(MedsaError, match="GET /medsa/status: connection refused"):
        client_for(refuse).status()


@pytest.mark.parametrize(
    ("response", "message"),
    [
        (httpx.Response(200, json={"version": 1}), "application/json, not multipart"),
        (
            httpx.Response(
                200,
                content=b'--b\r\nContent-Disposition: form-data; name="params"\r\n\r\n{}\r\n--b--\r\n',
                headers={"Content-Type": "multipart/form-data; boundary=b"},
            ),
            "holds no image",
        ),
    ],
)
def test_an_answer_without_a_mask_is_an_error(response: httpx.Response, message: str) -> None:
    with pytest.raises(MedsaError, match=message):
        client_for(lambda request: response).infer("medsa", "x", PromptSet(positive_ijk=((0, 0, 0),)))


def test_an_answer_that_is_no_json_is_an_error() -> None:
    with pytest.raises(MedsaError, match="the answer is no JSON"):
        client_for(lambda request: httpx.Response(200, text="<html>")).status()
