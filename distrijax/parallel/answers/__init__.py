"""The answers to a layer's three questions, several kinds of each.

An answer states what it costs. It `waits` if it needs values that other devices compute in the same step; it `carries`
if it needs what was made a step ago, which the scan then carries along; it `sends` if it needs messages every step.
What is carried and sent goes out at the head of a step, before the first layer, so that nothing waits for it.
"""
