"""How a conductor is learned beside plain PPO: from a teacher's trajectories that were verified, then on the verifiable score.

`teacher` plays, `retriever` says where it starts from, `verifier` replays and chooses, `supervised` learns, `around_policy`
looks ahead around what was learned; `phases` puts them in order and remembers which are done.
"""
