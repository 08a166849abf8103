"""Private: from a broken claim to the smallest map, the layer and the parameters to blame."""
