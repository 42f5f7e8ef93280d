"""Requests of an owner without a result: the spool knows them, whoever accepted them."""

from msgspec.structs import replace

from spool import OpenRequests, Spool, SpoolOwner
from tests.fakes.spool_fakes import answer, claim_one, make_request


def submit(spool: Spool, owner: str, priority: int = 5) -> str:
    return spool.submit(replace(make_request(priority), owner=owner))


def num_open(requests: OpenRequests, owner: str) -> tuple[int, int]:
    """How many an owner has, and all have."""
    found = requests.enter(owner, [], -1)
    assert found is not None
    return found


def test_waiting_and_running_requests_count_and_finished_ones_do_not(owner: SpoolOwner) -> None:
    """For a front door that has just started, too."""
    spool = owner.spool
    requests = OpenRequests(spool)
    for name in ("me", "me", "you"):
        submit(spool, name)
    claim = claim_one(owner)
    assert num_open(requests, "me") == (2, 3)
    owner.complete(claim, answer(claim.request))
    assert num_open(requests, "me") == num_open(OpenRequests(spool), "me") == (1, 2)
    assert num_open(requests, "nobody") == (0, 2)


def test_a_request_ends_with_its_result_and_not_with_its_name(owner: SpoolOwner) -> None:
    """Its client may ask again before rank 0 has tidied up."""
    submit(owner.spool, "me")
    done = answer(claim_one(owner).request)
    owner.spool.fs.write_new(owner.spool.folder.result(done.id), done.to_json(), is_synced=False)
    assert num_open(OpenRequests(owner.spool), "me")[0] == 0


def test_places_are_reserved_until_the_request_has_a_name(spool: Spool) -> None:
    """Two requests at once cannot take the last place both; one that is not submitted gives it back."""
    requests = OpenRequests(spool)
    first, second = make_request(), make_request()
    assert requests.enter("me", [first.id], 1) is None
    assert requests.enter("me", [second.id], 1) == (1, 1)
    assert requests.enter("you", [second.id], 1) is None
    requests.leave([second.id])
    spool.submit(replace(first, owner="me"))
    requests.leave([first.id])
    assert requests.enter("me", [second.id], 1) == (1, 1)
    assert num_open(requests, "you")[0] == 0


def test_lines_of_a_batch_count_for_nobody(spool: Spool) -> None:
    """A request that was let in by itself counts, whatever its priority."""
    requests = OpenRequests(spool)
    submit(spool, "me", priority=9)
    assert num_open(requests, "me")[0] == 0
    single = replace(make_request(9), owner="me")
    assert requests.enter("me", [single.id], 1) is None
    spool.submit(single)
    requests.leave([single.id])
    assert num_open(requests, "me")[0] == 1


def test_a_file_that_cannot_be_read_has_no_owner(spool: Spool) -> None:
    """Rank 0 answers it; nothing fails here."""
    request_id = submit(spool, "me")
    (path,) = spool.folder.incoming.iterdir()
    path.write_bytes(b"damaged")
    assert request_id in path.name
    assert num_open(OpenRequests(spool), "me") == (0, 1)
