from lib.model.adapter_io import AdapterConfig
from lib.training.record import RunRecord, write_card
from lib.training.validation import ObjectScore

CONFIG = AdapterConfig("vit_t", "abc", {}, {"liver": 1, "spleen": 2}, {}, "1")


def test_the_card_shows_figures_and_names_no_case():
    scores = {
        "champion": (ObjectScore("Jane Doe", "liver", (0.5, 0.7), 0.0),),
        "candidate": (ObjectScore("Jane Doe", "liver", (0.8, 0.9), 0.0),),
    }
    record = RunRecord(
        "published", (), "2026-01-01", 4, trained=("a", "b"), validated=("Jane Doe",), scores=scores, steps=70
    )
    card = write_card(CONFIG, record)
    assert "| liver | 0.600 | 0.850 |" in card
    assert "| spleen | - | - |" in card
    assert "version 4" in card
    assert "70 steps" in card
    assert "base_model: vit_t" in card
    assert "Jane" not in card


def test_the_record_is_plain_json_values():
    scores = {"champion": (ObjectScore("a", "l", (0.5,), 0.1),)}
    record = RunRecord("refused", ("worse",), "now", 0, scores=scores)
    stored = record.to_json()
    assert stored["scores"]["champion"] == (
        {"case_id": "a", "label": "l", "clicks": (0.5,), "automatic": 0.1},
    )
    assert stored["decision"] == "refused"
