"""Ties: seeing them, making them, keeping them, and bringing tied models off the meta device."""

from __future__ import annotations

from torchkeep.tables.survey import TieGroup as TieGroup
from torchkeep.tying.declaring import tie as tie
from torchkeep.tying.declaring import ties as ties
from torchkeep.tying.keeping import keeping_ties as keeping_ties
from torchkeep.tying.materializing import materialize as materialize
