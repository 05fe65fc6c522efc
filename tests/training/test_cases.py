import hashlib

from lib.files import file_digest


def test_file_digest_is_that_of_the_bytes(tmp_path):
    path = tmp_path / "label.nii.gz"
    path.write_bytes(b"content")
    before = file_digest(path)
    assert before == hashlib.sha256(b"content").hexdigest()
    path.write_bytes(b"contenu")
    assert file_digest(path) != before
