from trainer.model.config import Architecture
from trainer.rl.engine.blocks import BlockPool, block_bytes


def test_a_block_is_free_again_when_its_last_holder_lets_go():
    pool = BlockPool(3)
    block = pool.take()
    pool.share([block, block])
    for held in (2, 1):
        pool.release([block])
        assert pool.holders[block] == held
        assert pool.num_free == 2
    pool.release([block])
    assert pool.num_free == 3


def test_nothing_is_handed_out_beyond_the_number_of_blocks():
    pool = BlockPool(2)
    assert {pool.take(), pool.take()} == {0, 1}
    assert pool.take() is None
    assert pool.holders == [1, 1]
    pool.release([1])
    assert pool.take() == 1


def test_the_lowest_free_blocks_go_first():
    pool = BlockPool(5)
    for _ in range(4):
        pool.take()
    pool.release([2, 0])
    assert [pool.take(), pool.take(), pool.take()] == [0, 2, 4]


def test_block_bytes_count_keys_and_values_of_all_layers():
    architecture = Architecture(hidden_size=64, num_layers=3, num_heads=4, num_kv_heads=2)
    assert block_bytes(architecture, 16, 2) == 16 * 3 * 2 * (2 * 16) * 2
