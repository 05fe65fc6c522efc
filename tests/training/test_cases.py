import hashlib

from lib.training.cases import label_digest


def test_label_digest_is_that_of_the_bytes(tmp_path):
    path = tmp_path / "label.nii.gz"
    path.write_bytes(b"content")
    before = label_digest(path)
    assert before == hashlib.sha256(b"content").hexdigest()
    path.write_bytes(b"contenu")
    assert label_digest(path) != before
