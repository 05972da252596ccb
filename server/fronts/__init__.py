"""The wires: each module takes one wire's requests to the dispatcher and puts its answers into bytes."""
