from lib.model.adapter_io import AdapterConfig
from lib.training.record import RunRecord, write_card
from lib.training.validation import ObjectScore

CONFIG = AdapterConfig("vit_t", "abc", {}, {"liver": 1, "spleen": 2}, {}, "1")


def test_the_card_shows_figures_and_names_no_case():
    scores = {
        "champion": (ObjectScore("Jane Doe", "liver", (0.5, 0.6, 0.7, 0.7, 0.8), 0.1),),
        "candidate": (ObjectScore("Jane Doe", "liver", (0.8, 0.8, 0.9, 0.9, 0.95), 0.75),),
    }
    record = RunRecord(
        "published", (), "2026-01-01", 4, trained=("a", "b"), validated=("Jane Doe",), scores=scores, steps=70
    )
    card = write_card(CONFIG, record)
    assert "| liver | 1 click | 0.500 | 0.800 |" in card
    assert "| liver | 3 clicks | 0.700 | 0.900 |" in card
    assert "| liver | 5 clicks | 0.800 | 0.950 |" in card
    assert "| liver | no clicks | 0.100 | 0.750 |" in card
    assert "| spleen | 1 click | - | - |" in card
    assert "compared with version 4 on 1 cases never trained on" in " ".join(card.split())
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
