//! Ranks played by threads, each with its own server on loopback.

use blip2_model::backend::Flex;

use super::*;
use crate::distributed::host;

fn worlds(size: usize) -> Vec<World> {
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let world = |rank| World {
        rank,
        size,
        local_rank: rank,
        master: "127.0.0.1".into(),
        port,
    };
    (0..size).map(world).collect()
}

fn quick() -> Patience {
    Patience {
        gather: Duration::from_secs(30),
        silence: Duration::from_secs(2),
        answer: Duration::from_secs(1),
        linger: Duration::from_millis(100),
    }
}

/// Runs `f` on every rank, each with its own server, and returns the results in rank order.
fn on_all<R: Send>(size: usize, f: impl Fn(Cluster<Flex>) -> R + Sync) -> Vec<R> {
    std::thread::scope(|scope| {
        let start = |world: World| {
            let f = &f;
            scope.spawn(move || f(Cluster::connect(&world, quick()).unwrap()))
        };
        let handles: Vec<_> = worlds(size).into_iter().map(start).collect();
        handles.into_iter().map(|handle| handle.join().unwrap()).collect()
    })
}

fn numbers(rank: usize, len: usize) -> Vec<f32> {
    (0..len)
        .map(|i| ((i * 31 + rank * 17) % 101) as f32 * 0.37 - 9.0)
        .collect()
}

/// Many sums one after another, short and long, exact to the bit: addition in rank order is defined.
#[test]
fn sums_are_those_of_addition_in_rank_order() {
    let lengths = [1, 7, SHORT, SHORT + 1, 3 * SHORT + 5];
    let results = on_all(3, |cluster| {
        let sum = |&len: &usize| {
            let values = TensorData::new(numbers(cluster.rank, len), [len]);
            host(
                cluster
                    .all_reduce_sum(Tensor::from_data(values, &Default::default()))
                    .unwrap(),
            )
        };
        (0..3).flat_map(|_| lengths.iter().map(sum)).collect::<Vec<_>>()
    });
    for (round, &len) in lengths.iter().cycle().take(15).enumerate() {
        let want = add_up((0..3).map(|rank| numbers(rank, len)).collect());
        for result in &results {
            assert_eq!(result[round], want, "round {round}");
        }
    }
}

/// Rank 2 asks for it only when rank 0 has noticed, told it and gone.
#[test]
fn a_rank_that_leaves_is_named_by_all_others() {
    let results = on_all(3, |cluster| {
        let one = || Tensor::<Flex, 1>::from_data([1.0], &Default::default());
        cluster.all_reduce_sum(one()).unwrap();
        match cluster.rank {
            1 => return None,
            2 => std::thread::sleep(quick().answer + Duration::from_secs(2)),
            _ => {}
        }
        let start = Instant::now();
        let error = cluster.all_reduce_sum(one()).unwrap_err();
        assert!(start.elapsed() < Duration::from_secs(10));
        Some(error.to_string())
    });
    for message in results.into_iter().flatten() {
        assert!(message.starts_with("rank 1 is gone"), "{message}");
    }
}

/// As a machine without power: connections stay open and nothing comes.
#[test]
fn a_silent_rank_is_named_by_all_others() {
    let results = on_all(3, |cluster| {
        let one = || Tensor::<Flex, 1>::from_data([1.0], &Default::default());
        cluster.all_reduce_sum(one()).unwrap();
        if cluster.rank == 1 {
            // the others may still be fetching what they were owed
            std::thread::sleep(Duration::from_millis(500));
            let until = Instant::now() + 5 * quick().silence;
            // every network thread of it is taken, and every task that starts on one
            for _ in 0..8 {
                let sleep =
                    async move { std::thread::sleep(until.saturating_duration_since(Instant::now())) };
                cluster.runtime.spawn(sleep);
            }
            std::thread::sleep(until.saturating_duration_since(Instant::now()));
            return None;
        }
        let start = Instant::now();
        let error = cluster.all_reduce_sum(one()).unwrap_err();
        assert!(start.elapsed() < 2 * quick().silence, "{:?}", start.elapsed());
        Some(error.to_string())
    });
    for message in results.into_iter().flatten() {
        assert!(message.starts_with("rank 1 is gone"), "{message}");
    }
}

#[test]
fn a_slow_rank_is_waited_for() {
    let results = on_all(2, |cluster| {
        if cluster.rank == 1 {
            std::thread::sleep(quick().silence * 2);
        }
        let sum = cluster.all_reduce_sum(Tensor::<Flex, 1>::from_data([1.0], &Default::default()));
        host(sum.unwrap())[0]
    });
    assert_eq!(results, [2.0, 2.0]);
}
