int
km_run (const struct km_args *a)
{
	return a == 0;
}
