"""The cases by which something was chosen: no benchmark tests on them."""

# How an object is carried from slice to slice (lib/propagation.py) was chosen by looking at these: no test uses them.
HIPPOCAMPUS_TUNED_ON = frozenset(
    f"hippocampus_{number:03d}"
    for number in (
        1,
        15,
        93,
        130,
        132,
        150,
        157,
        161,
        162,
        163,
        171,
        184,
        205,
        212,
        277,
        292,
        304,
        305,
        331,
        351,
    )
)
CARDIAC_TUNED_ON = (
    *("SC-HF-I-01", "SC-HF-I-02", "SC-HF-I-04", "SC-HF-NI-11"),
    *("SC-HF-NI-36", "SC-HYP-01", "SC-HYP-12", "SC-N-07"),
)
