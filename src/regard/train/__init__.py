"""Recipes with a visible loop: every epoch a row, a checkpoint that an interrupted run goes on from, exactly."""
