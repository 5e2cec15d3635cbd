"""A small city in Cityscapes' layout, drawn by rule, for people who do not have Cityscapes.

Every picture is a street seen from a car, with exact labels. Training and validation cities are
disjoint families, and validation asks for more than memory:

- training cities are seen by day (clear, hazy, lightly clouded), with a high sun, gentle curves, a
  horizon near the middle, flats and houses beside streets of ordinary width;
- validation cities are seen at dusk with lit windows, under a heavy sky with a cold cast, and under a
  low sun that throws long shadows with a warm cast; their streets curve more, are narrower or wider,
  the horizon is higher or lower, and offices, unseen in training, stand beside the flats.

Facades, cars and clothes share one palette, roads and sidewalks another, and leaves are also brown and
red: a classifier of colour and row fails, one of texture, shape and place does not. The same seed gives
the same bytes on the same machine and library versions.
"""
